"""Distributed training: ranks, process group and collectives, hang detection, and stop signals of a training process.

Starting the processes is the launcher's part (util.tools.launch); what runs on one device belongs to util.devices.
"""
