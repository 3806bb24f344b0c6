"""Which process trains what: plan, tasks, engines and progress of a sweep."""
