"""What every folder uses: errors, layer numbers, options, the registry, stopping, text."""
