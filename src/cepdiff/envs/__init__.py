"""D4RL's environments on current MuJoCo; importing this package registers them in Gymnasium as `cepdiff/<task>`."""

from cepdiff.envs.registration import register_all

register_all()
