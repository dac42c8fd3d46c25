"""What more than one system uses, one subject a file. Nothing here knows a system by name."""
