"""The depth experiment: mini's vision tower before deeper and thinner language models, which are trained anew."""
