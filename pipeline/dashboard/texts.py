"""Every text of the pages in one catalogue, English and German, and how times and numbers are said.

Decisions, reasons and names of files are words of the contract and stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

LANGUAGES: Final = ("en", "de")
# A row is read as a row: key, English, German.
# fmt: off
CATALOGUE: Final[dict[str, tuple[str, str]]] = {
    # -- the frame around every page ---------------------------------------------------------------
    "line": ("Line", "Linie"),
    "reject": ("Rejects", "Ausschuss"),
    "review": ("Review", "Prüfen"),
    "threshold": ("Threshold", "Schwelle"),
    "replay": ("Replay", "Wiedergabe"),
    "health": ("Health", "Zustand"),
    "pages": ("Pages", "Seiten"),
    "to_content": ("Skip to content", "Zum Inhalt"),
    "contrast": ("Dark or light", "Dunkel oder hell"),
    "language": ("Deutsch", "English"),
    "keys": ("Keys", "Tasten"),
    "notice": ("Notice", "Hinweis"),
    "nowhere": ("There is no such page.", "Diese Seite gibt es nicht."),
    "token_asked": ("Token of this line", "Token dieser Linie"),
    "token_wrong": ("This is not its token.", "Das ist nicht ihr Token."),
    "open": ("Open", "Öffnen"),
    # -- states of the line ------------------------------------------------------------------------
    "NO SERVER": ("NO SERVER", "KEIN SERVER"),
    "PARTS UNACCOUNTED": ("PARTS UNACCOUNTED", "TEILE OHNE URTEIL"),
    "NO FRAMES": ("NO FRAMES", "KEINE BILDER"),
    "CAMERA DOWN": ("CAMERA DOWN", "KAMERA AUSGEFALLEN"),
    "CAMERA FROZEN": ("CAMERA FROZEN", "KAMERA EINGEFROREN"),
    "CAMERA STARVING": ("CAMERA STARVING", "KAMERA OHNE BILDER"),
    "LATE": ("LATE", "ZU SPÄT"),
    "WAITING": ("WAITING", "WARTET"),
    "RUNNING": ("RUNNING", "LÄUFT"),
    # -- Line --------------------------------------------------------------------------------------
    "rate": ("Parts per minute", "Teile pro Minute"),
    "yield": ("Yield", "Ausbeute"),
    "residual": ("Ledger residual", "Rest der Bilanz"),
    "latency": ("Exposure to verdict", "Belichtung bis Urteil"),
    "depth": ("Denoise steps, last minute", "Rechenschritte, letzte Minute"),
    "rates": ("Parts per minute, last 3 minutes", "Teile pro Minute, letzte 3 Minuten"),
    "parts": ("parts", "Teile"),
    "cameras": ("Cameras", "Kameras"),
    "camera": ("Camera", "Kamera"),
    "state": ("State", "Zustand"),
    "last_frame": ("Last frame", "Letztes Bild"),
    "captured": ("Captured", "Erfasst"),
    "backlog": ("Backlog", "Rückstand"),
    "backlog_of": ("backlog {count}", "Rückstand {count}"),
    "last_rejects": ("Last rejects", "Letzter Ausschuss"),
    "no_rejects": ("No rejects yet.", "Noch kein Ausschuss."),
    "no_picture": ("no picture", "kein Bild"),
    "picture_of": ("Part with its mask", "Teil mit Maske"),
    "share": ("{share} % of answered", "{share} % der Urteile"),
    "no_answers": ("no answers yet", "noch keine Urteile"),
    "answered": ("of {count} answered", "von {count} Urteilen"),
    "none": ("none", "keine"),
    "lost": ("not answered: run assayline doctor", "ohne Urteil: assayline doctor ausführen"),
    "none_lost": ("none lost · {open} in flight", "keins verloren · {open} in Arbeit"),
    "none_decided": ("no decided parts in the last minute", "kein Urteil in der letzten Minute"),
    "gate": ("gate {gate} ms", "Weiche {gate} ms"),
    "gate_late": ("{gate}: 1 part in 100 is too late", "{gate}: 1 Teil von 100 kommt zu spät"),
    "gate_met": ("{gate}: p99 uses {share} % of it", "{gate}: p99 braucht {share} %"),
    "none_yet": ("none yet", "noch keins"),
    "now": ("now", "jetzt"),
    "ago": ("{age} ago", "vor {age}"),
    "is_running": ("running", "läuft"),
    "is_starving": ("starving", "ohne Bilder"),
    "is_frozen": ("frozen", "eingefroren"),
    "is_down": ("down", "ausgefallen"),
    "surprise_of": ("surprise {surprise}, threshold {threshold}",
                    "Überraschung {surprise}, Schwelle {threshold}"),
    # -- Reject ------------------------------------------------------------------------------------
    "previous": ("Previous", "Voriges"),
    "next": ("Next", "Nächstes"),
    "newer": ("Newer", "Neueres"),
    "older": ("Older", "Älteres"),
    "place": ("{place} of {count}", "{place} von {count}"),
    "no_parts": ("No part has been rejected yet.", "Noch kein Teil ausgesondert."),
    "gone": ("This part is no longer kept.", "Dieses Teil ist nicht mehr aufbewahrt."),
    "frame": ("Frame", "Bild"),
    "mask": ("Mask", "Maske"),
    "map": ("Anomaly map", "Anomaliekarte"),
    "original": ("Full exposure", "Volle Aufnahme"),
    "no_map": ("No anomaly map was kept of this part.",
               "Zu diesem Teil ist keine Anomaliekarte aufbewahrt."),
    "no_mask": ("No mask: only a FAIL has one.", "Keine Maske: nur FAIL hat eine."),
    "reconstruction": ("Reconstruction", "Rekonstruktion"),
    "drawing": ("The reconstruction is being computed …", "Die Rekonstruktion wird berechnet …"),
    "drawn": ("The part as the model would have it, after {steps} denoise steps: computed now for "
              "people, nothing is judged on it.",
              "Das Teil, wie das Modell es erwartet, nach {steps} Rechenschritten: jetzt für "
              "Menschen berechnet, danach wird nicht geurteilt."),
    "not_drawn": ("No reconstruction: {why}", "Keine Rekonstruktion: {why}"),
    "drawing_ended": ("No reconstruction: what computes it ended before it was done; ask again.",
                      "Keine Rekonstruktion: die Berechnung brach ab; bitte noch einmal."),
    "no_torch": ("No reconstruction: it is computed with torch, which is not installed where this "
                 "page runs.",
                 "Keine Rekonstruktion: sie braucht torch, das hier nicht installiert ist."),
    "other_bundle": ("No reconstruction: another bundle than the line's own judged this part.",
                     "Keine Rekonstruktion: über dieses Teil urteilte ein anderes Bundle."),
    "tiles_not_drawn": ("No reconstruction: this bundle cuts its frames into tiles.",
                        "Keine Rekonstruktion: dieses Bundle zerlegt seine Bilder in Kacheln."),
    "score": ("Score against good parts", "Wert gegen gute Teile"),
    "no_score": ("This part was answered before it had a score.",
                 "Dieses Teil bekam sein Urteil, bevor es einen Wert hatte."),
    "no_good": ("The calibration of this plan is not at hand, so no good parts are drawn.",
                "Die Kalibrierung dieses Plans fehlt hier, gute Teile sind nicht gezeichnet."),
    "good_parts": ("good parts", "gute Teile"),
    "this_part": ("this part", "dieses Teil"),
    "score_note": ("this part {score}, limit {limit}, {good} good parts",
                   "dieses Teil {score}, Grenze {limit}, {good} gute Teile"),
    "score_beyond": ("this part {score} lies beyond the axis, limit {limit}, {good} good parts",
                     "dieses Teil {score} jenseits der Achse, Grenze {limit}, {good} gute Teile"),
    "facts": ("Facts", "Fakten"),
    "part": ("Part", "Teil"),
    "lot": ("Lot", "Los"),
    "recipe": ("Recipe", "Rezept"),
    "category": ("Category", "Kategorie"),
    "decision": ("Decision", "Urteil"),
    "reason": ("Reason", "Grund"),
    "exposed": ("Exposed", "Belichtet"),
    "decided": ("Decided", "Entschieden"),
    "raw_score": ("Raw score", "Rohwert"),
    "surprise": ("Surprise", "Überraschung"),
    "level": ("Noise level", "Rauschpegel"),
    "plan": ("Plan", "Plan"),
    "steps": ("Steps", "Schritte"),
    "steps_of": ("{steps} of {planned} planned", "{steps} von {planned} geplanten"),
    "regions": ("Regions", "Stellen"),
    "region": ("{w} × {h} px at {x}, {y}, peak {peak}", "{w} × {h} px bei {x}, {y}, Spitze {peak}"),
    "stages": ("Stage times", "Zeiten je Stufe"),
    "stage_queue": ("waiting", "Warten"),
    "stage_inspect": ("inspection", "Prüfung"),
    "stage_total": ("exposure to verdict", "Belichtung bis Urteil"),
    "versions": ("Versions", "Versionen"),
    "bundle": ("Bundle", "Bundle"),
    "backend": ("Backend", "Backend"),
    "calibration": ("Calibration", "Kalibrierung"),
    "replayed": ("Replayed", "Wiedergegeben"),
    "label": ("Review", "Prüfung"),
    "reject_keys": ("← newer · → older · m mask · k map · o frame · r reconstruction",
                    "← neuer · → älter · m Maske · k Karte · o Bild · r Rekonstruktion"),
    # -- Review ------------------------------------------------------------------------------------
    "agree": ("Agree", "Stimmt"),
    "false_reject": ("False reject", "Falsch ausgesondert"),
    "unsure": ("Unsure", "Unsicher"),
    "skip": ("Skip", "Überspringen"),
    "to_review": ("{count} to review", "{count} zu prüfen"),
    "reviewed": ("{count} reviewed", "{count} geprüft"),
    "all_reviewed": ("Everything is reviewed.", "Alles ist geprüft."),
    "who": ("Your name", "Ihr Name"),
    "who_needed": ("Say who you are first.", "Bitte zuerst den Namen angeben."),
    "not_saved": ("Not saved: {why}", "Nicht gespeichert: {why}"),
    "review_keys": ("a agree · f false reject · u unsure · → skip · ← back",
                    "a stimmt · f falsch ausgesondert · u unsicher · → weiter · ← zurück"),
    "taken_back": ("Labelled {answer} by {who}, {when}", "{answer}, von {who}, {when}"),
    "no_archive": ("This line keeps no archive: set sinks.archive.",
                   "Diese Linie hat kein Archiv: sinks.archive setzen."),
    # -- Threshold ---------------------------------------------------------------------------------
    "entry": ("Backend and category", "Backend und Kategorie"),
    "now_is": ("Threshold now", "Schwelle jetzt"),
    "what_if": ("What if", "Was wäre wenn"),
    "new_threshold": ("New threshold", "Neue Schwelle"),
    "promise": ("at most {share} % of good parts rejected, {confidence} % sure",
                "höchstens {share} % guter Teile ausgesondert, {confidence} % sicher"),
    "estimate": ("about {share} % of good parts above it, from {good} held-out ones",
                 "etwa {share} % guter Teile darüber, nach {good} zurückgehaltenen"),
    "below_promise": ("The promise of {share} % is not kept at this threshold.",
                      "Die Zusage von {share} % gilt bei dieser Schwelle nicht."),
    "history": ("{count} verdicts from {begin} to {end}", "{count} Urteile von {begin} bis {end}"),
    "no_history": ("No verdicts of this kind are recorded here (sinks.jsonl).",
                   "Hier sind keine solchen Urteile aufgezeichnet (sinks.jsonl)."),
    "surprise_axis": ("surprise; what lies above {top} stands at the end",
                      "Überraschung; was über {top} liegt, steht am Ende"),
    "to_fail": ("PASS becomes FAIL", "PASS wird FAIL"),
    "to_pass": ("FAIL becomes PASS", "FAIL wird PASS"),
    "fails_now": ("FAIL as judged", "FAIL wie geurteilt"),
    "fails_then": ("FAIL at the new threshold", "FAIL bei neuer Schwelle"),
    "flipped": ("Parts that flip", "Teile, die kippen"),
    "none_flip": ("No part flips.", "Kein Teil kippt."),
    "more_flip": ("and {count} more", "und {count} weitere"),
    "apply": ("Apply", "Anwenden"),
    "why": ("Reason", "Grund"),
    "why_needed": ("Say why.", "Bitte den Grund angeben."),
    "applied": ("Applied: calibration {id}. Workers take it at the next part.",
                "Angewandt: Kalibrierung {id}. Gilt ab dem nächsten Teil."),
    "not_applied": ("Not applied: {why}", "Nicht angewandt: {why}"),
    "exits_end": ("Early exit was fitted to the old threshold; it rests for this category.",
                  "Der frühe Ausstieg galt der alten Schwelle; er ruht für diese Kategorie."),
    "audit": ("Audit log", "Protokoll"),
    "audit_row": ("{when} · {who}: {old} → {new} ({entry}) · {why}",
                  "{when} · {who}: {old} → {new} ({entry}) · {why}"),
    "no_audit": ("Nothing has been changed here.", "Hier wurde nichts geändert."),
    "score_axis": ("raw score", "Rohwert"),
    # -- Health ------------------------------------------------------------------------------------
    "processes": ("Processes", "Prozesse"),
    "role": ("Role", "Rolle"),
    "process": ("Process", "Prozess"),
    "beat": ("Last beat", "Lebenszeichen"),
    "beats": ("beats", "lebt"),
    "no_process": ("none beats", "keiner lebt"),
    "server": ("Redis", "Redis"),
    "answers": ("answers", "antwortet"),
    "memory": ("{used} used", "{used} belegt"),
    "memory_of": ("{used} of {limit}", "{used} von {limit}"),
    "unknown": ("not known", "nicht bekannt"),
    "ledger": ("Ledger", "Bilanz"),
    "balanced": ("every part has its verdict", "jedes Teil hat sein Urteil"),
    "engine": ("Engine", "Rechenwerk"),
    "no_verdict": ("no verdict seen yet", "noch kein Urteil gesehen"),
    "gpu": ("GPU", "GPU"),
    "no_gpu": ("none on this machine", "keine in diesem Rechner"),
    "machine": ("This machine", "Dieser Rechner"),
    "cpu": ("processor {share} %", "Prozessor {share} %"),
    "ram": ("memory {used} of {limit}", "Speicher {used} von {limit}"),
    "disk": ("disk {free} free", "Platte {free} frei"),
    "own_cost": ("this page itself: {cpu} % of one core, {memory}",
                 "diese Seite selbst: {cpu} % eines Kerns, {memory}"),
    "events": ("Events", "Ereignisse"),
    "no_events": ("No event of note in this line's logs.", "Nichts Nennenswertes im Protokoll."),
    # -- Replay ------------------------------------------------------------------------------------
    "recording": ("Recording", "Aufnahme"),
    "against": ("Compare with", "Vergleichen mit"),
    "nothing": ("nothing", "nichts"),
    "no_recordings": ("There is no recording in {folder}. The command assayline record makes one.",
                      "In {folder} liegt keine Aufnahme. Der Befehl assayline record macht eine."),
    "play": ("Play", "Abspielen"),
    "pause": ("Pause", "Anhalten"),
    "seek": ("Part {place} of {count}", "Teil {place} von {count}"),
    "cut_short": ("This recording breaks off: it is shown up to the cut.",
                  "Diese Aufnahme bricht ab: sie wird bis dorthin gezeigt."),
    "too_long": ("Only the first {count} parts are shown.", "Nur die ersten {count} Teile."),
    "unreadable": ("It cannot be opened: {why}", "Nicht zu öffnen: {why}"),
    "differences": ("{count} of {parts} parts differ", "{count} von {parts} Teilen weichen ab"),
    "no_difference": ("all {parts} parts agree", "alle {parts} Teile stimmen überein"),
    "then": ("Recorded verdict", "Urteil der Aufnahme"),
    "again": ("Verdict compared", "Urteil im Vergleich"),
    "is_missing": ("no verdict there", "dort kein Urteil"),
    "opening": ("Opening …", "Wird geöffnet …"),
    "no_frame_kept": ("no frame of this part is in the recording",
                      "kein Bild dieses Teils in der Aufnahme"),
    "replay_keys": ("space play or pause · ← → one part · n next difference",
                    "Leertaste spielen oder anhalten · ← → ein Teil · n nächste Abweichung"),
    "next_difference": ("Next difference", "Nächste Abweichung"),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Speech:
    """Says texts, times and numbers in one language."""

    language: str = "en"

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key; its blanks are filled as text."""
        text = CATALOGUE[key][LANGUAGES.index(self.language)]
        return text.format(**values) if values else text

    def number(self, value: float | None, digits: int = 1) -> str:
        """A number with so many digits behind the point; a dash for none."""
        if value is None:
            return "–"
        text = f"{value:.{digits}f}"
        return text.replace(".", ",") if self.language == "de" else text

    def when(self, time_ns: int) -> str:
        """Date and time of epoch nanoseconds in this machine's zone."""
        day = "%d.%m.%Y" if self.language == "de" else "%Y-%m-%d"
        try:
            at = datetime.fromtimestamp(time_ns / 1e9).astimezone()
        except (ValueError, OverflowError, OSError):  # a stamp of no year that there is
            return "–"
        return at.strftime(f"{day} %H:%M:%S %Z")

    def size(self, count: int) -> str:
        """Bytes as people read them."""
        value, unit = float(count), "B"
        for larger in ("kB", "MB", "GB", "TB"):
            if value < 1000:
                break
            value, unit = value / 1000, larger
        return f"{self.number(value, 0 if unit in ('B', 'kB') else 1)} {unit}"


ENGLISH = Speech()


def language_of(asked: str, accepted: str) -> str:
    """The language asked for in the address, else the first that the browser accepts."""
    if asked in LANGUAGES:
        return asked
    wanted = (part.strip()[:2].lower() for part in accepted.split(","))
    return next((one for one in wanted if one in LANGUAGES), LANGUAGES[0])
