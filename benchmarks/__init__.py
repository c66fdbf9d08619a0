"""Speed measurements, and the random models that they and the tests run."""
