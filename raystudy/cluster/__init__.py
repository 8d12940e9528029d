"""What runs beside Ray on a cluster: the head's MLflow server, the cluster's secrets, the tunnel to it, spot notices."""
