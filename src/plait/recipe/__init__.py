"""A recipe of several stages, what each stage left behind, and how a run goes on."""
