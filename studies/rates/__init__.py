"""Does a measured learning rate beat rules that cost nothing, and what at the start tells the best one?"""
