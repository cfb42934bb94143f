"""From a folder of images to a description of the data and a config that suits it and the machine (``rc2l new``)."""
