"""From run directories to tables, statistics, figures and a page; trains nothing."""
