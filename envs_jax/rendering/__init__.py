"""Ray casting and shading per pixel, shared by the 3D worlds; knows of cameras, boxes, lights and materials only.

How it is fast on a CPU (measured at 128 x 128, see experiments/bench_env.py): an image is one elementwise program with
one output, so that XLA makes one vectorised loop of it. Hence vectors are tuples of arrays (`Vec`) and never stacked, a
colour leaves as one packed int32, a depth and what was hit share one int32, and no square root is used twice.
"""
