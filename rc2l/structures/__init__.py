"""What the rooms hand each other: data, below everything else. Nothing here knows a network, a loss or a config."""
