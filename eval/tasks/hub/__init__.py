"""Any data set of the hub, and any local parquet, json, csv or arrow files, with columns named on the command line."""
