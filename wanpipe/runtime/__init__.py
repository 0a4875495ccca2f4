"""What every package uses: documents, files, interrupts, reports, units."""
