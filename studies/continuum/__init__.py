"""Does the better objective depend on how well the model knows the task? The first finding put to the test."""
