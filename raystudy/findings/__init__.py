"""From records to knowledge: what the trials of a study say, and how sure it is."""
