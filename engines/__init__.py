"""Images to findings: methods, graphs, backends, bundles, calibration. Knows no camera or Redis."""
