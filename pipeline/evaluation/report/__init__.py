"""What an evaluation's records say, from them alone: results, figures and a page."""
