"""The verbs that compare arms: settings into arms, arms into runs, runs into a report."""
