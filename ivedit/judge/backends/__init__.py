"""Where answers come from: a server (`http`), a model on this machine (`local`), a stored record (`replay`)."""
