"""The core of RLHF: which samples are drawn, moved and scored, and when. Pure: events in, commands out."""
