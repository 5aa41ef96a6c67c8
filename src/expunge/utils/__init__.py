"""What every room uses: files, processes, progress, stop signals, tables."""
