from search.folder import RunFolder


def write_report(folder: RunFolder) -> None:
    pass
