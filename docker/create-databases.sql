-- MLflow's migration table has the name of Optuna's, so each gets a database; `autoq` exists already.
CREATE DATABASE mlflow;
