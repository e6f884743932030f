"""What a person is shown of the data: figures as text, samples and figures as a page."""
