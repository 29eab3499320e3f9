"""Switch Generation on the lab's world, from checkpoints to report: `antiphon reproduce switch`."""
