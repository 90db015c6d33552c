"""A node: trains its task."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from task import accuracy, get_arrays, get_data, get_model, set_arrays
from task import train as fit

app = ClientApp()


@app.train()
def train(message: Message, context: Context):
    task = "stripes"
    model = get_model(task)
    set_arrays(model, message.content["arrays"].to_torch_state_dict())
    images, labels = get_data(task, context.node_config["partition-id"])
    metrics = {"loss": fit(model, images, labels), "num-examples": len(labels)}
    content = RecordDict({"arrays": ArrayRecord(get_arrays(model)), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context):
    task = "stripes"
    model = get_model(task)
    set_arrays(model, message.content["arrays"].to_torch_state_dict())
    images, labels = get_data(task, 1000 + context.node_config["partition-id"])
    metrics = {"accuracy": accuracy(model, images, labels), "num-examples": len(labels)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
