"""Where images and their labels lie: class folders, split folders, tables of labels."""
