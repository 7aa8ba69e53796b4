"""`unimodal demo`: the whole chain on easy-VQA with the commands a user would type, then a page that shows it."""
