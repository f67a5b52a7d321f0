"""A grader behind HTTP (extra ``petm[serve]``): one process, one model, batches that form by themselves."""
