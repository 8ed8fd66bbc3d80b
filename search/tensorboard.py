class TrialBoards:
    def __init__(self, folder, space):
        pass

    def trial_started(self, number, params):
        pass

    def trial_epoch(self, number, result):
        pass

    def trial_ended(self, number, state, result):
        pass

    def close(self):
        pass
