"""What goes out: models and tables as they are served."""
