"""The web page: `python TextRegionSegmenter.py --serve`. Nothing here is needed without that flag.

server.py start and end · connections.py how many, how long · gate.py what the server answers at all · addresses.py who
asks whom · uploads.py files and their quota · page.py layout and events · views.py from what the browser sends to what
it shows or saves · api.py what programs ask · cached_segmenter.py images and questions. Only page.py knows gradio.
"""
