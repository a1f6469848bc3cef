"""The DAG: the catalogue as files, the planned jobs, their cost, and guards for a cluster."""
