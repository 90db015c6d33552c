"""The server: one unified vector a node."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from task import get_arrays, get_model

from matu.federation.flower.strategy import MatuStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context):
    strategy = MatuStrategy(fraction_train=1.0, min_nodes=3)
    arrays = ArrayRecord(get_arrays(get_model("stripes")))
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)
    print(result.evaluate_metrics_clientapp)
