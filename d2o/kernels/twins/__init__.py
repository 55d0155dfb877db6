"""The kernels of a decode step for a CPU, compiled by numba where they are first used: the twins of d2o/kernels/row.py
and d2o/kernels/leave.py, function for function, for float32."""
