"""What an answer is worth: reward models and rewards that can be verified. `reward.py` is the contract."""
