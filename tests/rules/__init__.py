"""What the rules are tested with: pages of exporters over time, cases that change them, and promtool."""
