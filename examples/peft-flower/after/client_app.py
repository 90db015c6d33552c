"""A node: trains its tasks."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from task import accuracy, get_arrays, get_data, get_model, set_arrays
from task import train as fit

from matu.federation.flower.mod import matu_mod

TASKS = (["stripes"], ["colours"], ["stripes", "colours"])


def held(context: Context):
    tasks = TASKS[context.node_config["partition-id"] % 3]
    return {task: (len(get_data(task, 0)[1]), get_arrays(get_model(task))) for task in tasks}


app = ClientApp(mods=[matu_mod(held)])


@app.train()
def train(message: Message, context: Context):
    task = message.content["config"]["task"]
    model = get_model(task)
    set_arrays(model, message.content["arrays"].to_torch_state_dict())
    images, labels = get_data(task, context.node_config["partition-id"])
    metrics = {"loss": fit(model, images, labels), "num-examples": len(labels)}
    content = RecordDict({"arrays": ArrayRecord(get_arrays(model)), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context):
    task = message.content["config"]["task"]
    model = get_model(task)
    set_arrays(model, message.content["arrays"].to_torch_state_dict())
    images, labels = get_data(task, 1000 + context.node_config["partition-id"])
    metrics = {"accuracy": accuracy(model, images, labels), "num-examples": len(labels)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
