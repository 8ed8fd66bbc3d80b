"""Which backbones are searched, and their cached features: everything before the first trial."""
