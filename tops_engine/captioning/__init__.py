"""Caption many pictures: prompts, batches, requests to a server, text files, and a results file to continue."""
