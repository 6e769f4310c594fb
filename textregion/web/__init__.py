"""The web page: `python TextRegionSegmenter.py --serve`. Nothing here is needed without that flag.

limits.py what a visitor may ask for · session.py images and questions, without any gradio · pictures.py and
panels.py what is shown · page.py layout and events · gate.py what the server answers at all · server.py start and end.
"""
