"""What can be wrong with a merged model: how it is measured, and one small check for each cause."""
