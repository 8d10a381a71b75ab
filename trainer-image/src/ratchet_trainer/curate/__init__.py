"""The curate stage: sessions become a dataset."""
