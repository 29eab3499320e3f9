"""Tables, coloured traces and pages, made from records."""
