"""The toy studies test claims of the ShiQ paper on small problems with exact optima, with the losses of training.

bandit_study        Fig. 1: regret against optimiser steps on a bandit
grid_study          Fig. 2: regret on a grid with a treasure
init_study          Fig. 6: the loss before training against the level of the reference's logits
propagation_study, offset_study, lambda_study   what explains these figures; not in the paper

tabular_problems    bandit, grid and lock, with exact optimum and regret
logged_trajectories sampling of logged data, mini-batches
learner             tables of logits as policies, one for each seed, and the optimiser step
study_methods       the losses with the settings of the studies
findings, plotting  tables, CSV files and figures of what a study found
"""
