"""What every package uses: documents, files, interrupts, reports, units. Knows no videos."""
