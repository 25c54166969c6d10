"""Who acts: history in, thought and action out.

`token_agent.py` is the one to begin with: an agent on a model of ours. `chat_agent.py` asks a chat endpoint,
`spec.py` says which one a recipe wants, `rendering.py` and `rendering_chat.py` make the tokens that a model sees
and is trained on, and `rollout.py` plays many episodes side by side. May import `engines` and below.
"""

from ..moved import forward

__getattr__ = forward(__name__, "token_agent")
