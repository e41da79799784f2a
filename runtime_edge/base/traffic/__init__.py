"""Traffic: budgets, totals over time, and the kernel's counters."""
