"""What the report shows of every kind of run: its tables, and the words it uses."""
