"""The server: FedAvg over the adapter and the classifier."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from task import get_arrays, get_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context):
    strategy = FedAvg(fraction_train=1.0, min_available_nodes=3)
    arrays = ArrayRecord(get_arrays(get_model("stripes")))
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)
    print(result.evaluate_metrics_clientapp)
