"""Where frames come from: files, cameras, recordings and a simulator behind one seam."""
