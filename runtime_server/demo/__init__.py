"""`ssc demo`: the whole loop on one machine, with real processes, and a report of what happened."""
